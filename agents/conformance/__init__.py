"""One suite for any engine: does it do what its adapter, and the control plane, suppose it does?"""
