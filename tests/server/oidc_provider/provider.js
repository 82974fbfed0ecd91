// A provider whose users sign in with any password. Its port, keys, clients and users are an argument, as JSON.

import Provider from 'oidc-provider';

const { port, keys, clients, users } = JSON.parse(process.argv[2]);
const claimsOf = (id) => ({ sub: id, ...users[id] });

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients,
  jwks: { keys },
  cookies: { keys: ['of these tests'] },
  claims: { openid: ['sub'], profile: ['name', 'groups'] },
  conformIdTokenClaims: false, // the claims are in the ID token, too
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256'] },
  findAccount: (_, id) => ({ accountId: id, claims: () => claimsOf(id) }),
  extraTokenClaims: (_, token) => ({ groups: claimsOf(token.accountId ?? token.clientId).groups ?? [] }),
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'https://ask.example.org',
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: 'ask',
        audience: 'ragfm-api',
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
  // Users consent to everything.
  async loadExistingGrant(context) {
    const { client, session, params } = context.oidc;
    const grant = new context.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope(params.scope);
    grant.addResourceScope('https://ask.example.org', 'ask');
    await grant.save();
    return grant;
  },
});
provider.listen(port, '127.0.0.1', () => console.log('listening'));
