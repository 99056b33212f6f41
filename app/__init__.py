"""Does what one invocation asks: resolves options, opens engines, makes, resumes, replays and evaluates runs. No screen."""
