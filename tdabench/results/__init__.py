"""Results: runs with their quality, priced, and joined into rows. Board and findings are made of them."""
