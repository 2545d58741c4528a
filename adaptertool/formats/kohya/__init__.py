"""Single files as kohya's sd-scripts and LyCORIS write them."""
