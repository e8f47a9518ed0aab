"""Pages on which people compare: studies side by side, two trials image by image, one study as a report."""
