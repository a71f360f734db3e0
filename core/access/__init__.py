"""Who may use the HTTP API: tokens, and the sessions of browsers that logged in with one."""
