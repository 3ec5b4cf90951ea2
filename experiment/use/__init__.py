"""Using a trained model: predictions of one's own images and tables, and exports."""
