"""From a finished search to a model that can be trusted: fresh seeds, one look at the test images, a gate."""
