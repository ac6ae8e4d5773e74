"""What a layer can be made of, a file each; ``registry`` lists them."""
