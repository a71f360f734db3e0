"""What happened, for logs and monitors: published after the commit it tells of."""
