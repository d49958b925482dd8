"""What several tests share: clients, servers, load."""
