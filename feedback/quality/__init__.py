"""What the stored feedback is worth: counts along the road, and whether place or time decides choices."""
