"""What an artifact is, whether it is whole, and what nobody needs."""
