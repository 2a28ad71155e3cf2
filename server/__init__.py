"""The server: a library of masks, the vote over it, and the doors that devices come through."""
