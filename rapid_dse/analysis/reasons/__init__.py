"""Why one layout is better than another: its terms, its neighbours, and what would turn the order round."""
