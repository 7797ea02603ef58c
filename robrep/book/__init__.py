"""The kit of the pages: what the book needs and the library never imports."""
