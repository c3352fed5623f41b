{{- /* Parts of pods that all services share. Argument of each: (list $ "component"). */}}
{{- define "mayfly.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mayfly.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mayfly.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "mayfly.env" -}}
{{- range $name, $value := . }}
{{- if ne (toString $value) "" }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "mayfly.databaseEnv" -}}
- name: MAYFLY_DATABASE_URL
  valueFrom:
    secretKeyRef: {name: {{ include "mayfly.databaseSecret" . }}, key: url}
{{- end }}

{{- define "mayfly.serviceEnv" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- $name := include "mayfly.name" $root }}
{{- $domain := printf "%s.svc.%s" $root.Release.Namespace $root.Values.clusterDomain }}
{{- $env := dict
  "MAYFLY_INSTALLATION" (include "mayfly.installation" $root)
  "MAYFLY_LOG_LEVEL" $root.Values.logLevel
  "MAYFLY_OTLP_ENDPOINT" $root.Values.otlpEndpoint
  "MAYFLY_BUILDER_ADDRESS" (printf "%s-builder.%s:7001" $name $domain)
  "MAYFLY_DEPLOYER_ADDRESS" (printf "%s-deployer.%s:7002" $name $domain)
  "MAYFLY_JANITOR_ADDRESS" (printf "%s-janitor.%s:7003" $name $domain)
  "MAYFLY_DATA_DIR" "/var/lib/mayfly"
}}
{{- if $root.Values.metrics.enabled }}
{{- $_ := set $env (printf "MAYFLY_%s_METRICS_LISTEN" (upper $component)) "0.0.0.0:9090" }}
{{- end }}
{{- include "mayfly.env" (mergeOverwrite $env (index . 2) $root.Values.extraEnv (index $root.Values $component).extraEnv) }}
{{- end }}

{{- define "mayfly.ports" -}}
{{- if .Values.metrics.enabled }}
- {name: metrics, containerPort: 9090}
{{- end }}
{{- end }}

{{- /* Liveness asks for nothing but the process; readiness for all that it needs.
       Argument: (list port liveness-service readiness-service). */}}
{{- define "mayfly.probes" -}}
startupProbe:
  grpc: {port: {{ index . 0 }}, service: {{ index . 1 | quote }}}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  grpc: {port: {{ index . 0 }}, service: {{ index . 1 | quote }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  grpc: {port: {{ index . 0 }}, service: {{ index . 2 | quote }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{- define "mayfly.scheduling" -}}
{{- $root := index . 0 }}
{{- $values := index $root.Values (index . 1) }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "mayfly.selector" $ | nindent 8 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* With a database that is installed at the same moment, services wait for it. */}}
{{- define "mayfly.waitForDatabase" -}}
{{- if include "mayfly.demoPostgres" . }}
initContainers:
  - name: database
    image: {{ include "mayfly.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [python, -m, services.standalone.migrate]
    env:
      {{- include "mayfly.databaseEnv" . | nindent 6 }}
    securityContext:
      {{- include "mayfly.containerSecurity" . | nindent 6 }}
    resources:
      requests: {cpu: 10m, memory: 64Mi}
      limits: {memory: 256Mi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end }}

{{- define "mayfly.podAnnotations" -}}
{{- $root := index . 0 }}
{{- with (index $root.Values (index . 1)).annotations }}
{{- toYaml . }}
{{- end }}
{{- /* New credentials are new pods. */}}
mayfly.dev/secrets: {{ toJson (list $root.Values.database $root.Values.registry $root.Values.bucket $root.Values.index) | sha256sum | trunc 16 }}
{{- end }}

{{- define "mayfly.budget" -}}
{{- $root := index . 0 }}
{{- if gt (int (index $root.Values (index . 1)).replicas) 1 }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "mayfly.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "mayfly.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "mayfly.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "mayfly.metadata" . | nindent 2 }}
  {{- with (index (index . 0).Values (index . 1)).serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
