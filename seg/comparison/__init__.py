"""Many runs side by side: read, grouped, ranked with tests, and shown on a page."""
