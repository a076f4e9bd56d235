"""Models in and out: import of published and foreign files, export to other programs' formats."""
