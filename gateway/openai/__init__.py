"""The API of OpenAI over our generator: its clients need only another base URL."""
