"""What happened, for logs and monitors: published after the commit that made it true."""
