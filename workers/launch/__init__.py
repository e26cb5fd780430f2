"""How real engines are started: what to run, with which words and ports. Pure, and says no more.

An engine knows nothing of us: a launcher gives it a model, ports and a role, as its own manual
asks for them, and whoever starts it (a shell, `tokenplane up`, a compose file, a scaler) runs the
command that comes out.
"""
