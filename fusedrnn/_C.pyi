"""The operators' library: importing it registers them with torch. It has no members."""
