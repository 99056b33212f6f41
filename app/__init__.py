"""What one invocation is: options resolved, engines opened, runs made, resumed, replayed and evaluated. No screen."""
