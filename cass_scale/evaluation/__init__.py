"""What frozen or fine-tuned encoders are worth: protocols and scores."""
