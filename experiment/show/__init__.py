"""What people look at: tables beside published numbers, pictures, and the report."""
