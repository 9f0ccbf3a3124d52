"""Drop-ins for classes of other libraries: the peer's signature over pygen's numerics. One module for each library."""
