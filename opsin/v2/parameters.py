"""Values under Paddle's names; the tar format."""
