"""One module a panel; each draws itself from the state and owns what only it needs."""
