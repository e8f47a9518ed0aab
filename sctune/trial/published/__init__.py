"""What a driver hands to nodes that lack it: decoded images, splits and weights, cut into verified parts."""
