"""The API against its own description: whatever is sent, no 5xx, and no answer that /openapi.json does not describe."""
