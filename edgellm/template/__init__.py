"""Chat templates: a conversation becomes a prompt, in a sandbox that is bounded in time and memory."""
