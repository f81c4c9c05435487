from attack_world import one_thread

__all__ = ["one_thread"]
