"""What client and server must agree on."""
