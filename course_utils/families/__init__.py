"""What each template family writes between the turns of a conversation, and how it is read back."""
