"""What the nodes of an attempt reach before they train, and which of them falls short."""
