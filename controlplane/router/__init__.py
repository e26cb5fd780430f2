"""Where a request goes: the prefix index, the ledger of work in flight, and the policies."""
