"""What training adds to mmengine's Runner: exact resume, scores after validation, progress."""
