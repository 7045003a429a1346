# What Nexa Runtime may do in Vault: read each tenant's limits, and nothing else.
# "+" is exactly one path segment. Renewing its own token is allowed by the "default" policy.
path "secret/data/tenant/+/nexa" {
  capabilities = ["read"]
}
