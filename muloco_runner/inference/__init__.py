"""What is done with a run's weights after training: loaded, sampled from, exported, evaluated. Nothing trains here."""
