"""Methods that leave the weights as they are and put parameters beside them: a codebook, neurons, a small MLP."""
