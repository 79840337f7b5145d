"""Schedule templates for x86 and ARM, sized by the target's vector width and registers."""
