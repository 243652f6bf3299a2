{{- /*
  Laid over Istio's own template `sidecar`: the identity comes from the socket of
  the SPIFFE CSI driver, and svid-watchdog tells whether its rotation works.
*/ -}}
{{- if hasPrefix "teleport-sidecar" (annotation .ObjectMeta `inject.istio.io/templates` "") }}
  {{- fail "teleport-sidecar is laid over another template: the annotation inject.istio.io/templates must say sidecar,teleport-sidecar" }}
{{- end }}
{{- /* The image, here and nowhere else. */ -}}
{{- $image := "registry.example.com/svid-watchdog:1.0.0" }}
{{- /* Where a handshake with Envoy shows what a peer is served; off if empty. */ -}}
{{- $handshakePort := annotation .ObjectMeta `svid-watchdog/handshake-port` "" }}
{{- /* As Istio's own template decides it. */ -}}
{{- $native := ne (index .ObjectMeta.Annotations `sidecar.istio.io/nativeSidecar` | default (printf "%t" .NativeSidecars)) "false" }}
{{- /* A list of the pod or of the mesh stays: an annotation would replace it. */ -}}
{{- $ownStats := or (isset .ObjectMeta.Annotations `sidecar.istio.io/statsInclusionPrefixes`) .ProxyConfig.GetProxyStatsMatcher.GetInclusionPrefixes }}
metadata:
  labels:
    spiffe.io/spire-managed-identity: "true"
  {{- if not $ownStats }}
  annotations:
    sidecar.istio.io/statsInclusionPrefixes: sds.
  {{- end }}
spec:
  {{ if $native }}initContainers{{ else }}containers{{ end }}:
  - name: istio-proxy
    env:
    - name: PILOT_CERT_PROVIDER
      value: workloadapi
    - name: CA_ADDR
      value: unix:///var/run/secrets/workload-spiffe-uds/socket
    volumeMounts:
    - name: workload-socket
      mountPath: /var/run/secrets/workload-spiffe-uds
      readOnly: true
    - name: workload-certs
      mountPath: /var/run/secrets/workload-spiffe-credentials
      readOnly: true
  - name: svid-watchdog
    image: {{ $image }}
    {{- with .Values.global.imagePullPolicy }}
    imagePullPolicy: {{ . }}
    {{- end }}
    {{- if $native }}
    restartPolicy: Always
    {{- end }}
    env:
    - name: GOMAXPROCS
      value: "1"
    - name: GOMEMLIMIT
      value: 24MiB
    {{- with $handshakePort }}
    - name: INSTANCE_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: SVID_WATCHDOG_HANDSHAKE_ADDRESS
      value: $(INSTANCE_IP):{{ . }}
    {{- end }}
    ports:
    - name: svid-watchdog
      containerPort: 9816
      protocol: TCP
    # No probe: Istio would send it through its agent, and a dead agent must not
    # kill the witness. Nor may the watchdog take the pod's traffic away.
    resources:
      requests:
        cpu: 5m
        memory: 24Mi
      limits:
        memory: 32Mi
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop:
        - ALL
      privileged: false
      readOnlyRootFilesystem: true
      runAsNonRoot: true
      {{- if $handshakePort }}
      # Only what Envoy's own user sends to the pod's address reaches Envoy.
      runAsUser: {{ .ProxyUID | default "1337" }}
      runAsGroup: {{ .ProxyGID | default "1337" }}
      {{- else }}
      runAsUser: 65532
      runAsGroup: 65532
      {{- end }}
      seccompProfile:
        type: RuntimeDefault
    volumeMounts:
    - name: workload-socket
      mountPath: /var/run/secrets/workload-spiffe-uds
      readOnly: true
    - name: workload-certs
      mountPath: /var/run/secrets/workload-spiffe-credentials
      readOnly: true
  volumes:
  - name: workload-socket
    $retainKeys:
    - name
    - csi
    csi:
      driver: csi.spiffe.io
      readOnly: true
  - name: workload-certs
    emptyDir: {}
