"""What each runtime demands of a Q/DQ graph, checked offline, node by node."""
