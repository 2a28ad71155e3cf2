"""What device and server share: the words of the method, and how they cross the wire."""

import os

# gRPC's core would write lines of its own between ours. It looks once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
