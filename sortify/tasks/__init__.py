"""What is learned: how a batch becomes inputs, a loss and scores."""
