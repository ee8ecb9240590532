"""What a run folder says: a page, a model card, a screen. From the run's records alone, never from a model."""
