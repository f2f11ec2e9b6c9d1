"""What a training needs and how long it takes, told before any of it is run."""
