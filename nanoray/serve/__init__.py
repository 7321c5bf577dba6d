"""A model behind an OpenAI API and a chat page, on Ray Serve."""
