"""What every gRPC process needs, knowing no service and no model."""
