"""Training: a model from nothing (`from_scratch`) and, later, fine-tuning."""
