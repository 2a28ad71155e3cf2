"""The wire: its messages, and the code generated from them."""
