"""The server: a library of masks, the vote over it, and the doors that devices come through."""

from common.quiet_dependencies import quiet_dependencies

quiet_dependencies()
