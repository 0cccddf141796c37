"""What search costs: the server over its store, stores from ten thousand to a million documents, one stage and two."""
